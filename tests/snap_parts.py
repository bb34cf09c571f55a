#!/usr/bin/env python3
"""Runs the parts of snapcraft.yaml into a tree, as `snapcraft prime` would: stage-packages, override-build,
organize, stage, then meta/. It is for machines where snapcraft (a snap itself) cannot run.

  tests/snap_parts.py --packages DIR --tree DIR [--variant classic|strict]

--packages holds one folder a part with its stage-packages as .deb files. KEDGE_BINARY and KUBECTL name the
programs that override-build would otherwise build or fetch. Not done here: enable-patchelf (the tree then
runs with the C library of the machine it is on, core24's when that is Ubuntu 24.04).
"""

import argparse
import fnmatch
import os
import pathlib
import shutil
import subprocess
import tempfile

import yaml

PROJECT = pathlib.Path(__file__).resolve().parent.parent
# What override-build calls: only setting the version means something here.
CRAFTCTL = '#!/bin/sh\ncase "$1 $2" in "set version="*) echo "${2#version=}" >"$CRAFT_VERSION_FILE" ;; esac\n'


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--packages", type=pathlib.Path, required=True)
    arguments.add_argument("--tree", type=pathlib.Path, required=True)
    arguments.add_argument("--variant", default="classic")
    options = arguments.parse_args()
    text = subprocess.run(
        [PROJECT / "snap/variant.py", options.variant], check=True, stdout=subprocess.PIPE
    ).stdout
    document = yaml.safe_load(text)
    options.tree.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        version = work / "version"
        for name, part in document["parts"].items():
            run_part(name, part, options, work, version)
        write_meta(document, version.read_text().strip(), options.tree)


def run_part(name, part, options, work, version):
    assert part["plugin"] == "nil", f"part {name}: this runs parts of the plugin nil only"
    install, build, bin = work / name / "install", work / name / "build", work / name / "bin"
    for folder in (install, build, bin):
        folder.mkdir(parents=True)
    if part.get("stage-packages"):
        packages = sorted((options.packages / name).glob("*.deb"))
        for wanted in part["stage-packages"]:
            assert any(p.name.startswith(f"{wanted}_") for p in packages), f"part {name}: no {wanted}"
        for package in packages:
            # No symbolic link of the tree (bin -> usr/bin) is followed: the part's own paths count.
            subprocess.run(["dpkg-deb", "--extract", package, install], check=True)
    if script := part.get("override-build"):
        (bin / "craftctl").write_text(CRAFTCTL)
        (bin / "craftctl").chmod(0o755)
        machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
        environment = os.environ | {
            "PATH": f"{bin}:{os.environ['PATH']}",
            "CRAFT_PROJECT_DIR": str(PROJECT),
            "CRAFT_PART_INSTALL": str(install),
            "CRAFT_PART_BUILD": str(build),
            "CRAFT_ARCH_BUILD_FOR": machine,
            "CRAFT_VERSION_FILE": str(version),
        }
        subprocess.run(["bash", "-e", "-c", script], check=True, cwd=build, env=environment)
    for source, target in part.get("organize", {}).items():
        assert (install / source).exists(), f"part {name}: there is no {source} to organize"
        (install / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(install / source, install / target)
    wanted = part.get("stage", ["*"])
    for pattern in wanted:
        found = False
        for file in sorted(install.rglob("*")):
            path = str(file.relative_to(install))
            if file.is_dir() and not file.is_symlink():
                continue
            if not fnmatch.fnmatch(path, pattern) and not path.startswith(f"{pattern}/"):
                continue
            found = True
            target = options.tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_symlink() or target.exists():
                continue
            shutil.copy2(file, target, follow_symlinks=False)
        if not found:
            print(f"note: part {name}: nothing matches {pattern}")


def write_meta(document, version, tree):
    meta = tree / "meta"
    shutil.copytree(PROJECT / "snap/hooks", meta / "hooks")
    apps = {}
    for name, app in document["apps"].items():
        apps[name] = app
        for program in [app["command"].split()[0], *app.get("command-chain", []), app.get("completer")]:
            assert program is None or (tree / program).exists(), f"app {name}: there is no {program}"
    keep = ["name", "title", "summary", "description", "license", "grade", "confinement", "base"]
    snap = {key: document[key] for key in keep} | {"version": version, "apps": apps}
    snap["environment"] = document["environment"]
    snap |= {key: document[key] for key in ("plugs", "hooks") if key in document}
    (meta / "snap.yaml").write_text(yaml.dump(snap, sort_keys=False))


if __name__ == "__main__":
    main()
