"""Which parameter gets which rule, and why.

`partition_parameters` looks at a module: names, module types, shapes, ties; `partition_all` routes
its frozen parameters too. `partition_named` has only names and shapes to go by. All return a
`Partition`: a `Route` for each parameter, with its kind, its role and the reason.
"""

from lightning_root.partition.routes import Kind, Partition, Role, Route
from lightning_root.partition.rules import Rules
from lightning_root.partition.split import partition_all, partition_named, partition_parameters
from lightning_root.partition.views import MatrixView

__all__ = [
    "Kind",
    "MatrixView",
    "Partition",
    "Role",
    "Route",
    "Rules",
    "partition_all",
    "partition_named",
    "partition_parameters",
]
