"""What the tests of the partition share: how to read one, and small modules to build."""

from torch import nn

from lightning_root.partition import Partition, partition_parameters


def names(partition: Partition, role: str) -> set[str]:
    return {route.name for route in partition.routes if route.role == role}


def reasons(partition: Partition) -> dict[str, str]:
    return {route.name: route.reason for route in partition.routes}


def split(partition: Partition) -> list[tuple[str, str, str]]:
    return [(route.name, route.role, route.reason) for route in partition.routes]


def heads(module: nn.Module) -> set[str]:
    routes = partition_parameters(module).routes
    return {route.name for route in routes if route.reason.startswith("output head")}


class Wrapper(nn.Module):
    """Like a LightningModule: the model is an attribute, and things stand beside it."""

    def __init__(self, model: nn.Module, **beside: nn.Module):
        super().__init__()
        self.model = model
        for name, module in beside.items():
            self.add_module(name, module)


class Children(nn.Module):
    """Named children, registered in the given order."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Residual(Children):
    """A block of a custom class."""


def residual(width: int = 4) -> Residual:
    return Residual(up=nn.Linear(width, 8), down=nn.Linear(8, width))


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


def attention() -> Children:
    return Children(query=linear(), key=linear(), value=linear())
