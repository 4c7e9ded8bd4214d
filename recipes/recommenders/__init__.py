"""Recommenders: trained, counted or read. Each has a file of its own and is listed here."""

from recipes.recommenders.caser import Caser
from recipes.recommenders.co_occurrence import CoOccurrence
from recipes.recommenders.gru4rec import GRU4Rec
from recipes.recommenders.markov import Markov
from recipes.recommenders.morec import MoRec
from recipes.recommenders.popularity import Popularity
from recipes.recommenders.recommender import AnyRecommender
from recipes.recommenders.sasrec import SASRec
from recipes.recommenders.sasrec_post_norm import SASRecPostNorm
from recipes.recommenders.text_encoder import TextEncoder
from recipes.recommenders.vector_file import VectorFile
from recipes.registry import Registry

RECOMMENDERS: Registry[AnyRecommender] = Registry(
    "recommender",
    Popularity,
    Markov,
    CoOccurrence,
    TextEncoder,
    GRU4Rec,
    Caser,
    SASRec,
    SASRecPostNorm,
    MoRec,
    VectorFile,
)
