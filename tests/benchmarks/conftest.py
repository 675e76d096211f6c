import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # in a checkout benchmarks/ lies beside src/
    sys.path.insert(0, str(ROOT))
