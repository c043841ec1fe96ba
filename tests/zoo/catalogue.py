"""Every architecture of the zoo, by name."""

from tests.zoo.by_hand import BY_HAND
from tests.zoo.decoders import DECODERS
from tests.zoo.encoders import ENCODERS
from tests.zoo.perception import PERCEPTION
from tests.zoo.specimen import Specimen

ZOO: dict[str, Specimen] = {**DECODERS, **ENCODERS, **PERCEPTION, **BY_HAND}
