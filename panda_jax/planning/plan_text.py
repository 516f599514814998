"""A plan for people."""

from typing import Any


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lanes, memory, mesh = report["lanes"], report["memory"], report["mesh"]
    settings = ", ".join(
        f"{name} {value}" for name, value in report["settings"].items()
    )
    cut = " x ".join(f"{name} {size}" for name, size in mesh.items())
    lines = [
        f"{report['topology']}: mesh {cut}; {settings}",
        f"fleet of {lanes['fleet']} ({lanes['padded']} with padding), "
        f"{lanes['per_group']} a device group, "
        f"{lanes['chunk'] or 'all'} at a time; "
        f"{report['data']['rows']} training rows"
        + ("" if report["data"]["resident"] else ", sent by dispatch"),
    ]
    if report["fits_by"] == "estimate":
        lines.append(
            "Compiled for as many CPU devices: temporaries, bytes and "
            "collectives are the CPU's; times are at the named chip's rates."
        )
    lines.append("memory a device:")
    lines += [
        f"  {name:16s} {_bytes(size):>10s}" for name, size in memory.items()
    ]
    lines.append(_fits(report))
    if "step" in report:
        lines += _step_lines(report)
    largest = report.get("largest_fleet")
    if largest is not None:
        words = f"largest fleet that fits: {largest['fleet']}"
        if not largest["exact"]:
            least = largest["least_too_large"]
            less = f", fewer than {least}" if least else ""
            words += f" or more{less} (the search has ended)"
        lines.append(words)
        for each in largest["tried"]:
            total = _bytes(each["total"]) if each["total"] else "too large"
            lines.append(f"  {each['fleet']:5d} lanes: {total}")
    return "\n".join(lines)


def _fits(report: dict[str, Any]) -> str:
    words = {True: "yes", False: "no", None: "not known"}[report["fits"]]
    line = f"fits: {words} ({report['fits_by']})"
    if "lacking" in report:
        line += f", lacking at least {_bytes(report['lacking'])}"
    return line


def _step_lines(report: dict[str, Any]) -> list[str]:
    step = report["step"]
    lines = [
        f"a step on a device: {step['flops'] / 1e12:.4g} TFLOP of matrix "
        f"products, {_bytes(step['bytes'])} to and from memory"
    ]
    for kind, found in report["collectives"].items():
        lines.append(f"  {kind}: {found['count']:g}, {_bytes(found['bytes'])}")
    if "seconds" in step:
        parts = ", ".join(
            f"{name} {seconds * 1e3:.4g} ms"
            for name, seconds in step["seconds"].items()
        )
        lines.append(
            f"at least {step['roofline_seconds'] * 1e3:.4g} ms a step "
            f"({parts}): at most {step['examples_per_second']:.4g} examples/s"
        )
    return [*lines, f"compiled in {report['compile_seconds']}s"]


def _bytes(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"
