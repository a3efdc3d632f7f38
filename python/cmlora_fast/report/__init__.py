"""How results are told, by the command line and by the benchmarks."""

from .console import each_step, print_json, print_table, printable, progress
from .document import document, machine, provenance, version_of, versions, write_json

__all__ = [
    "document",
    "each_step",
    "machine",
    "print_json",
    "print_table",
    "printable",
    "progress",
    "provenance",
    "version_of",
    "versions",
    "write_json",
]
