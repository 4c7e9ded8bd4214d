"""Datasets: raw files -> interactions. Each has a file of its own and is listed here."""

from recipes.datasets.custom import Custom
from recipes.datasets.dataset import Dataset
from recipes.datasets.lastfm import LastFM
from recipes.datasets.movielens import MovieLens
from recipes.datasets.ring import Ring
from recipes.datasets.steam import Steam
from recipes.datasets.steam_reviews import SteamReviews
from recipes.datasets.synthetic import Synthetic
from recipes.registry import Registry

DATASETS: Registry[Dataset] = Registry(
    "dataset", LastFM(), MovieLens(), Steam(), SteamReviews(), Synthetic(), Ring(), Custom()
)
