#!/bin/sh
# Runs the plugin's quick tests with other releases of PEFT and transformers, in a throwaway environment,
# and prints the rows of docs/versions.md.
#
#   sh tests/plugin/versions.sh                             # the table's pairs
#   sh tests/plugin/versions.sh "0.21.2 5.23.0" ...         # pairs of one's own
#
# PYTHON chooses the interpreter, TORCH the release of torch.
set -eu
cd "$(dirname "$0")/../.."
torch=${TORCH:-$(sed -n 's/^torch==//p' constraints.txt)}
[ $# -gt 0 ] || set -- \
    "0.21.0 5.17.0" "0.21.1 5.17.0" "0.21.2 4.53.3" "0.21.2 4.57.6" "0.21.2 5.0.0" \
    "0.21.2 5.10.4" "0.21.2 5.23.0"

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
echo "| PEFT | transformers | torch | passed | failed | skipped |"
echo "| --- | --- | --- | ---: | ---: | ---: |"
for pair in "$@"; do
    peft=${pair% *} transformers=${pair#* }
    "$environment/bin/pip" install --quiet "torch==$torch" "peft==$peft" \
        "transformers==$transformers" accelerate datasets hypothesis pytest
    "$environment/bin/python" -m pytest tests/plugin -m "not slow" -q --tb=line -rfE -p no:cacheprovider \
        --ignore tests/plugin/test_families.py --ignore tests/plugin/test_trainer.py \
        > "$environment/log" 2>&1 || true
    count() { tail -n 1 "$environment/log" | grep -o "[0-9]* $1" | cut -d " " -f 1; }
    passed=$(count passed || true) failed=$(count failed || true) skipped=$(count skipped || true)
    echo "| $peft | $transformers | $torch | ${passed:-0} | ${failed:-0} | ${skipped:-0} |"
    sed -n '/^\(FAILED\|ERROR\)/p' "$environment/log" >&2
done
