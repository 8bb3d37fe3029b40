#!/usr/bin/env bash
# Analyze a run: scripts/analyze_training.sh RUN [--json]. The work is `entrenar analyze`.
set -euo pipefail
exec "${PYTHON:-python}" -c 'from entrenar.cli.main import main; main()' analyze "$@"
