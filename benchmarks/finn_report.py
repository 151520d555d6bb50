"""One table and one plot of what each bit-width costs on an FPGA, and of its accuracy.

    python benchmarks/finn_report.py

Runs nothing: resources are those of `finn_matrix.py`, accuracies those of `cifar10_short.py`
and `w8a8.py`, of ResNet-8, which alone was trained. Writes its table into docs/finn.md and the plot
of all networks beside the matrix's results. What was not measured is a dash.
"""

from typing import Any

from cifar10_short import accuracies, read, spread
from finn_matrix import NETWORKS, RESULTS, ROOT, corrections, load
from pages import FINN_PAGE, write_between

SHORT = ROOT / "benchmarks" / "results" / "cifar10_short"
TRAINED = "cifar_resnet8"
PLAIN_2, PLAIN_8 = "W2A2 alone", "W8A8 alone"


def left_out(row: dict[str, Any]) -> int:
    """LUTs that FINN's estimate leaves out of a row of the matrix."""
    _, more = corrections()[row["network"], str(row["bits"])]
    return more


COLUMNS = {  # title -> where a result of the matrix has it
    "frames/s": lambda row: row["performance"]["estimated_throughput_fps"],
    "latency ms": lambda row: row["performance"]["estimated_latency_ns"] / 1e6,
    "LUT": lambda row: row["resources"]["LUT"],
    "LUT, corrected": lambda row: row["resources"]["LUT"] + left_out(row),
    "BRAM 18K": lambda row: row["resources"]["BRAM_18K"],
    "DSP": lambda row: row["resources"]["DSP"],
}


def top1() -> dict[str, list[float]]:
    """Setting -> last epoch's top-1 of each seed, of ResNet-8 in the finn profile."""
    found: dict[str, list[float]] = {}
    for variant, name in (("finn", None), ("w2a2", PLAIN_2), ("w8a8", PLAIN_8)):
        for path in sorted(SHORT.glob(f"{variant}_s*/summary.csv")):
            for bits, accuracy in accuracies(read(path)[-1]).items():
                found.setdefault(name or bits, []).append(accuracy)
    return found


def settings(results: list[dict[str, Any]], network: str) -> dict[str, dict[str, Any]]:
    """Setting -> row of the matrix; a plain W2A2 network is the hardware of one branch."""
    rows = {str(r["bits"]): r for r in results if r["network"] == network}
    plain = {PLAIN_8: rows.pop("W8A8")} if "W8A8" in rows else {}
    if "2" in rows:
        plain = {PLAIN_2: rows["2"], **plain}
    return {**rows, **plain}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one line per setting of the network that was trained."""
    measured = top1()
    titles = ["network", "setting", "top-1 %", *COLUMNS]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for setting, row in settings(results, TRAINED).items():
        seeds = measured.get(setting)
        name = f"{setting} bits" if setting.isdigit() else setting
        accuracy = f"{spread(seeds)} ({len(seeds)})" if seeds else "-"
        cells = [f"{value(row):.{2 if 'ms' in key else 0}f}" for key, value in COLUMNS.items()]
        size = f"{row['size']}x{row['size']}"
        lines.append(f"| {TRAINED}, {size} | {name} | {accuracy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]]) -> None:
    """Cost over that of the plain W8A8 network, and accuracy, against bits."""
    from matplotlib import pyplot as plt

    quantities = ["LUT", "BRAM 18K", "DSP", "latency ms"]
    figure, panels = plt.subplots(1, 5, figsize=(14, 3.6), layout="constrained")
    for panel, quantity in zip(panels, quantities, strict=False):
        _draw_ratios(panel, results, quantity)
    _draw_accuracy(panels[-1])
    for panel in panels:
        panel.set(xlabel="bits", xticks=[2, 3, 4, 6, 8], xlim=(1.5, 8.5))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize="small")
    figure.savefig(RESULTS / "report.png", dpi=130)


def _draw_ratios(panel: Any, results: list[dict[str, Any]], quantity: str) -> None:
    """A line for each network whose W8A8 network is in the matrix."""
    value, drawn = COLUMNS[quantity], set()
    for network in NETWORKS:
        rows = settings(results, network)
        if PLAIN_8 in rows:
            bits = sorted(int(setting) for setting in rows if setting.isdigit())
            ratios = [value(rows[str(bit)]) / value(rows[PLAIN_8]) for bit in bits]
            panel.plot(bits, ratios, "o-", label=network)
            drawn |= {*bits}
    for missing in {2, 4, 6, 8} - drawn:
        panel.text(missing, 0.85, "not run", rotation=90, ha="center", va="top", fontsize="small")
    top = max(2.0, 1.1 * panel.get_ylim()[1])
    panel.axhspan(1.0, top, color="tab:red", alpha=0.08, linewidth=0)
    panel.axhline(1.0, color="0.3", linestyle="--", linewidth=1)
    panel.text(1.7, 0.97 * top, "dearer than W8A8", ha="left", va="top", fontsize="small")
    panel.set(title=f"{quantity.split()[0]} / that of W8A8", ylim=(0, top))


def _draw_accuracy(panel: Any) -> None:
    """A mark for each seed."""
    alone = {PLAIN_2: (2, "s"), PLAIN_8: (8, "x")}
    for setting, seeds in top1().items():
        bits, marker = alone.get(setting) or (int(setting), "o")
        color = "0.4" if setting in alone else "C0"
        panel.plot([bits] * len(seeds), seeds, marker, color=color, fillstyle="none")
    panel.plot([], [], "o", color="C0", fillstyle="none", label="one network, all bits")
    for setting, (_, marker) in alone.items():
        panel.plot([], [], marker, color="0.4", fillstyle="none", label=setting)
    panel.legend(fontsize="small")
    lowest, highest = panel.get_ylim()
    middle, reach = (lowest + highest) / 2, max(5.0, (highest - lowest) / 2)
    panel.set(title=f"top-1 %, {TRAINED}", ylim=(middle - reach, middle + reach))


def main() -> None:
    """Write the table and the plot."""
    results = load()
    lines = table(results)
    write_between(FINN_PAGE, "finn_report", lines)
    print(lines)
    draw(results)


if __name__ == "__main__":
    main()
