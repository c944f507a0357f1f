"""Data of every modality: what ships with packages, and what lies in local files.

`load` returns a `Dataset`; `to_unit` and `from_unit` map between its integers and the [-1, 1] of the models.
"""

from .dataset import Dataset, from_unit, to_unit
from .decoding import ImageDecoder
from .images import IMAGE_SUFFIXES
from .load import BUILT_IN, load
from .sound import RECORDINGS
from .splits import Samples, Split, TensorSplit
from .vectors import TABLES, TOYS
from .wrapping import convert, wrap

__all__ = [
    "BUILT_IN",
    "IMAGE_SUFFIXES",
    "RECORDINGS",
    "TABLES",
    "TOYS",
    "Dataset",
    "ImageDecoder",
    "Samples",
    "Split",
    "TensorSplit",
    "convert",
    "from_unit",
    "load",
    "to_unit",
    "wrap",
]
