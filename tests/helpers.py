"""What several tests ask of an optimizer."""


def names_by_role(optimizer):
    """The names of the parameters under each rule, in the order of the groups."""
    routes = optimizer.partition.routes
    return {role: [r.name for r in routes if r.role == role] for role in ("root", "adamw")}


def params_by_role(optimizer):
    """The parameters under each rule, in the order of the groups."""
    split = optimizer.partition
    pairs = list(zip(split.routes, split.parameters, strict=True))
    return {role: [p for r, p in pairs if r.role == role] for role in ("root", "adamw")}
