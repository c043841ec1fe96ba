"""Which parameter gets which rule, and why.

`partition_parameters` looks at a module: names, module types, shapes, ties. `partition_named` has
only names and shapes to go by. Both return a `Partition`: a `Route` for each parameter, with its
reason.
"""

from lightning_root.partition.routes import Partition, Role, Route
from lightning_root.partition.rules import Rules
from lightning_root.partition.split import partition_named, partition_parameters
from lightning_root.partition.views import MatrixView

__all__ = [
    "MatrixView",
    "Partition",
    "Role",
    "Route",
    "Rules",
    "partition_named",
    "partition_parameters",
]
