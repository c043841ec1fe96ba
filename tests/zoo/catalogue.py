"""Every architecture of the zoo, by name."""

from tests.zoo.by_hand import BY_HAND
from tests.zoo.decoders import DECODERS
from tests.zoo.encoders import ENCODERS
from tests.zoo.forecasting import FORECASTING
from tests.zoo.many_heads import MANY_HEADS
from tests.zoo.perception import PERCEPTION
from tests.zoo.specimen import Specimen
from tests.zoo.unusual import UNUSUAL

ZOO: dict[str, Specimen] = {
    **{**DECODERS, **ENCODERS, **PERCEPTION, **BY_HAND},
    **{**FORECASTING, **MANY_HEADS, **UNUSUAL},
}
