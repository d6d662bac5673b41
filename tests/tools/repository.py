"""Where this repository lies, for tests that read its files, run its commands or copy it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
