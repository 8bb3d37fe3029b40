"""Write observability/: Prometheus' configuration, alert rules, a Grafana dashboard, and the compose file.

All of it follows from the table of metrics (entrenar/observe/metrics.py); `--check` says which files are stale.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from entrenar.observe.metrics import BY_NAME, COUNTER, GROUPS, HISTOGRAM, Row

FOLDER = Path(__file__).resolve().parents[1] / "observability"
MADE = "Written by scripts/observability.py from the table of metrics (entrenar/observe/metrics.py)."
PORT = 9464  # where the run is scraped: `--metrics-port 9464`; OpenTelemetry's choice for a Prometheus exporter
IMAGES = {"prometheus": "prom/prometheus:v3.5.0", "grafana": "grafana/grafana:12.1.1"}
GRAFANA_UNITS = {"s": "s", "By": "bytes", "Hz": "hertz", "Cel": "celsius"}
WIDTH = 100  # of a line of YAML
WINDOW = "1m"  # of rates: at least four scrapes

# name, expression, how long it holds, sentence for a person
ALERTS = (
    (
        "EntrenarNoStep",
        "changes(entrenar_step[5m]) == 0 and entrenar_step < entrenar_planned_steps",
        "25m",
        "No step was done for half an hour.",
    ),
    (
        "EntrenarSlowSteps",
        "rate(entrenar_step_duration_seconds_sum[5m]) / rate(entrenar_step_duration_seconds_count[5m])"
        " > 2 * rate(entrenar_step_duration_seconds_sum[2h]) / rate(entrenar_step_duration_seconds_count[2h])",
        "5m",
        "Steps take more than twice as long as in the last two hours; look at throttling, steal and pressure.",
    ),
    (
        "EntrenarHeldOutLossRises",
        "entrenar_held_out_loss > 1.05 * min_over_time(entrenar_held_out_loss[1d])",
        "10m",
        "The held-out loss is 5 % above its lowest: the run learns its examples by heart, or diverges.",
    ),
    (
        "EntrenarGradientNormSpike",
        "entrenar_gradient_norm > 10 * quantile_over_time(0.5, entrenar_gradient_norm[1h])",
        "0s",
        "The gradient norm is ten times its median of the last hour.",
    ),
    (
        "EntrenarAnomaly",
        'sum by (instance, kind) (increase(entrenar_anomalies_total{severity="high"}[10m])) > 0',
        "0s",
        "{{ $labels.kind }}: the run's anomalies.jsonl says at which step, and why.",
    ),
    (
        "EntrenarThrottled",
        "rate(entrenar_cpu_throttled_seconds_total[5m]) > 0.1",
        "5m",
        "The CPU quota of the cgroup holds the run up; raise the limit, or set --threads to what it allows.",
    ),
    (
        "EntrenarSteal",
        "rate(entrenar_cpu_steal_seconds_total[5m]) > 0.2",
        "5m",
        "The hypervisor gives the cores to other machines.",
    ),
    (
        "EntrenarMemoryPressure",
        'rate(entrenar_pressure_seconds_total{resource="memory",degree="some"}[5m]) > 0.1',
        "2m",
        "Tasks wait for memory; take shorter rows, a smaller batch, or gradient checkpointing.",
    ),
    (
        "EntrenarMajorFaults",
        'rate(entrenar_page_faults_total{type="major"}[5m]) > 100',
        "5m",
        "Pages are read back from the disk: the memory is too small for the run.",
    ),
    (
        "EntrenarMemoryGrows",
        "deriv(entrenar_resident_memory_bytes[1h]) * 3600 > 0.1 * entrenar_resident_memory_bytes",
        "30m",
        "Resident memory grows by more than a tenth an hour.",
    ),
    (
        "EntrenarDiskFull",
        "entrenar_disk_free_bytes < 2e9",
        "1m",
        "Less than 2 GB are left where the run writes; the next checkpoint may fail.",
    ),
    (
        "EntrenarMemoryErrors",
        'increase(entrenar_memory_errors_total{type="uncorrected"}[1h]) > 0',
        "0s",
        "The memory controller counted errors that it could not correct: check the machine before trusting the run.",
    ),
)
# record: expression; what other tools may ask for by a short name
RECORDS = {"entrenar:tokens:rate1m": f"rate(entrenar_tokens_total[{WINDOW}])"}
# title, Grafana's unit, expression, legend: what is read first
SHOWN = (
    ("Tokens per second", "short", f"rate(entrenar_tokens_total[{WINDOW}])", "{{instance}}"),
    ("Step of", "short", "entrenar_step / entrenar_planned_steps", "{{instance}}"),
    (
        "GFLOP/s by kernel",
        "short",
        f"rate(entrenar_kernel_flops_total[{WINDOW}]) / 1e9",
        "{{kernel}}",
    ),
    (
        "Share of time by phase",
        "percentunit",
        f"rate(entrenar_phase_duration_seconds_sum[{WINDOW}])",
        "{{phase}}",
    ),
)


def panel_of(row: Row) -> tuple[str, str, list[tuple[str, str]]]:
    """Title, Grafana's unit, and expressions with their legends: rates of counters, quantiles of histograms."""
    legend = " ".join(f"{{{{{label}}}}}" for label in row.labels) or "{{instance}}"
    unit = GRAFANA_UNITS.get(row.unit, "short")
    if row.name == "entrenar_info":
        return row.help, unit, [(row.name, legend)]
    if row.kind == HISTOGRAM:
        by = ", ".join(("le", "instance", *row.labels))
        rates = f"sum by ({by}) (rate({row.name}_bucket[{WINDOW}]))"
        return row.help, unit, [(f"histogram_quantile({q}, {rates})", f"{legend} p{100 * q:g}") for q in (0.5, 0.95)]
    if row.kind == COUNTER:
        each = {"s": "percentunit", "By": "Bps"}.get(row.unit, "cps")  # seconds in a second are a share
        return f"{row.help}, per second", each, [(f"rate({row.name}[{WINDOW}])", legend)]
    return row.help, unit, [(row.name, legend)]


def panels() -> list[dict[str, Any]]:
    """Grafana's panels: a row of the dashboard for each group of the table, two panels wide."""
    made: list[dict[str, Any]] = []
    top = 0
    groups = [("At a glance", [(title, unit, [(expression, legend)]) for title, unit, expression, legend in SHOWN])]
    groups += [(group, [panel_of(row) for row in rows]) for group, rows in GROUPS.items()]
    for group, wanted in groups:
        made.append({"type": "row", "title": group, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []})
        top += 1
        for at, (title, unit, targets) in enumerate(wanted):
            place = {"x": 12 * (at % 2), "y": top + 8 * (at // 2), "w": 12, "h": 8}
            made.append(
                {
                    "type": "timeseries",
                    "title": title,
                    "gridPos": place,
                    "datasource": {"type": "prometheus", "uid": "prometheus"},
                    "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                    "targets": [
                        {"refId": "AB"[n], "expr": expression, "legendFormat": legend}
                        for n, (expression, legend) in enumerate(targets)
                    ],
                }
            )
        top += 8 * ((len(wanted) + 1) // 2)
    return [{"id": number, **panel} for number, panel in enumerate(made, 1)]


def dashboard() -> str:
    """The dashboard as Grafana imports it (its JSON model, schema 39)."""
    table = {
        "uid": "entrenar",
        "title": "entrenar",
        "description": MADE,
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": panels(),
    }
    return json.dumps(table, indent=1) + "\n"


def rules() -> str:
    """Recording and alert rules (Prometheus' rule files)."""
    lines = [f"# {MADE}", "groups:", "  - name: entrenar", "    rules:"]
    for name, expression in RECORDS.items():
        lines += [f"      - record: {name}", *folded("        expr", expression)]
    for name, expression, hold, sentence in ALERTS:
        lines += [f"      - alert: {name}", *folded("        expr", expression), f"        for: {hold}"]
        lines += ["        annotations:", *folded("          summary", sentence)]
    return "\n".join(lines) + "\n"


def folded(key: str, text: str) -> list[str]:
    """A YAML key with a folded block scalar: its lines are joined by single spaces."""
    indent = " " * (len(key) - len(key.lstrip()) + 2)
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{key}: >-", *(indent + line for line in lines)]


def prometheus() -> str:
    """The configuration of Prometheus."""
    return f"""# {MADE}
# Runs on this machine at `--metrics-port {PORT}`; add a target for each further run.
global:
  scrape_interval: 5s
  evaluation_interval: 15s
rule_files:
  - rules.yml
scrape_configs:
  - job_name: entrenar
    static_configs:
      - targets: ["127.0.0.1:{PORT}"]
"""


def compose() -> str:
    """The three servers. Prometheus and Grafana are on the host's network: a run answers on its loopback alone."""
    return f"""# {MADE}
# docker compose -f observability/docker-compose.yml up -d
# Traces: http://127.0.0.1:16686   metrics: http://127.0.0.1:9090   dashboard: http://127.0.0.1:3000
services:
  jaeger:
    extends:
      file: ../docker-compose-jaeger.yml
      service: jaeger
  prometheus:
    image: {IMAGES["prometheus"]}
    network_mode: host
    command:
      - --config.file=/etc/prometheus/prometheus.yml
      - --web.listen-address=127.0.0.1:9090
      - --web.enable-otlp-receiver
    volumes:
      - ./prometheus.yml:/etc/prometheus/prometheus.yml:ro
      - ./rules.yml:/etc/prometheus/rules.yml:ro
      - prometheus:/prometheus
    restart: unless-stopped
  grafana:
    image: {IMAGES["grafana"]}
    network_mode: host
    environment:
      GF_SERVER_HTTP_ADDR: 127.0.0.1
      GF_AUTH_ANONYMOUS_ENABLED: "true"
      GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH: /etc/grafana/dashboards/entrenar.json
    volumes:
      - ./grafana/datasources.yml:/etc/grafana/provisioning/datasources/entrenar.yml:ro
      - ./grafana/dashboards.yml:/etc/grafana/provisioning/dashboards/entrenar.yml:ro
      - ./grafana/entrenar.json:/etc/grafana/dashboards/entrenar.json:ro
      - grafana:/var/lib/grafana
    depends_on: [prometheus, jaeger]
    restart: unless-stopped
volumes:
  prometheus:
  grafana:
"""


DATASOURCES = f"""# {MADE}
apiVersion: 1
datasources:
  - name: Prometheus
    uid: prometheus
    type: prometheus
    url: http://127.0.0.1:9090
    isDefault: true
    jsonData:
      timeInterval: 5s
  - name: Jaeger
    uid: jaeger
    type: jaeger
    url: http://127.0.0.1:16686
"""
DASHBOARDS = f"""# {MADE}
apiVersion: 1
providers:
  - name: entrenar
    type: file
    options:
      path: /etc/grafana/dashboards
"""


def generated() -> dict[str, str]:
    """The files of observability/ by name."""
    return {
        "docker-compose.yml": compose(),
        "prometheus.yml": prometheus(),
        "rules.yml": rules(),
        "grafana/entrenar.json": dashboard(),
        "grafana/datasources.yml": DATASOURCES,
        "grafana/dashboards.yml": DASHBOARDS,
    }


def expressions() -> list[str]:
    """Every query of dashboard and rules."""
    found = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    return [*found, *RECORDS.values(), *(expression for _, expression, *_ in ALERTS)]


def stale() -> list[str]:
    """Names of the files that are missing or other than they would be written."""
    return [
        name
        for name, text in generated().items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the files, or check them."""
    if sys.argv[1:] == ["--check"]:
        for name in (found := stale()):
            print(f"observability/{name} is stale: run scripts/observability.py")
        return bool(found)
    if sys.argv[1:]:
        sys.exit("usage: observability.py [--check]")
    for name, text in generated().items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"observability/: {len(generated())} files for {len(BY_NAME)} metrics")
    return 0


if __name__ == "__main__":
    sys.exit(main())
