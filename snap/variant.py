#!/usr/bin/env python3
"""Prints snapcraft.yaml of a variant: snap/snapcraft.yaml with snap/VARIANT.yaml laid over it.

Mappings are merged, everything else is replaced, and null takes a key away.
"""

import pathlib
import sys

import yaml


def merge(base, over):
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def main():
    folder = pathlib.Path(__file__).parent
    variants = ["classic", *sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "snapcraft")]
    if len(sys.argv) != 2 or sys.argv[1] not in variants:
        sys.exit(f"usage: snap/variant.py {'|'.join(variants)}")
    document = yaml.safe_load((folder / "snapcraft.yaml").read_text())
    if sys.argv[1] != "classic":
        document = merge(document, yaml.safe_load((folder / f"{sys.argv[1]}.yaml").read_text()))
    yaml.dump(document, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
