"""What `panda-jax grid --dry_run` prints of a grid's runs."""

from collections import Counter

from panda_jax.experiments.expansion import expand
from panda_jax.experiments.grid import Grid
from panda_jax.experiments.planned import ROLES, STAGES, Plan, Planned, slug


def listing(grid: Grid) -> str:
    """A line a run and role, with ids and needs; the counts are last.

    Raises:
      UserError: a setting that no run can have.
    """
    plan = expand(grid)
    lines = [
        _line(run, role)
        for group in plan.groups
        for run in group.runs
        for role in run.roles
    ]
    return "\n".join([*lines, "", *_counts(grid, plan)])


def _line(run: Planned, role: str) -> str:
    """Such as `pot bert-tiny-cb-pot-rte-s0-0123456789 source=9876543210`."""
    needs = "".join(f" {name}={id_}" for name, id_ in run.needs.items())
    also = "" if role == run.roles[0] else f" (the {run.roles[0]} run above)"
    return f"{role:8s} {run.name}{needs}{also}"


def _counts(grid: Grid, plan: Plan) -> list[str]:
    """A table of backbones and roles, and what it takes."""
    roles = [r for r in ROLES if any(r in run.roles for run in plan.runs)]
    asked = Counter(
        (run.run.backbone, role) for run in plan.runs for role in run.roles
    )
    seeds = len(grid.seeds)
    width = max(len(slug(name)) for name in (*grid.backbones, "backbone"))
    head = "".join(f"{role:>9s}" for role in roles)
    lines = [f"Runs a seed ({seeds} in all):", f"{'backbone':{width}s}{head}"]
    for backbone in grid.backbones:
        row = "".join(f"{asked[backbone, r] / seeds:9g}" for r in roles)
        lines.append(f"{slug(backbone):{width}s}{row}")
    total, once = sum(asked.values()), len(plan.runs)
    lines.append(f"In all {total} runs.")
    if total != once:
        lines.append(
            f"{total - once} of them are also another's (same settings, same "
            f"id, marked above), so that {once} are trained."
        )
    stages = Counter(group.stage for group in plan.groups)
    each = ", ".join(f"{stages[s]} {s}" for s in STAGES if stages[s])
    lines.append(
        f"{len(plan.groups)} fleets ({each}), the largest of "
        f"{max(len(group.runs) for group in plan.groups)} runs; "
        f"at most {plan.programs} training steps to compile."
    )
    return lines
