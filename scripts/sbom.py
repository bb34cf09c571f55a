#!/usr/bin/env python3
"""Prints a software bill of materials (CycloneDX 1.5, JSON) of the kedge binary.

What cargo resolves from Cargo.lock for the target: the crates that are linked into the binary or built
for it, each with licence, checksum and what it depends on; crates that only run at build time are marked
"excluded" in scope. The same lock file and binary give the same bytes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import tomllib
import uuid
from datetime import datetime, timezone


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--target", required=True, help="the Rust target, e.g. aarch64-unknown-linux-gnu")
    arguments.add_argument("--binary", help="the binary that is described; its checksum is written")
    options = arguments.parse_args()

    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", options.target]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    with open("Cargo.lock", "rb") as file:
        lock = tomllib.load(file)
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = next(id for id, p in packages.items() if p["name"] == "kedge" and p["source"] is None)

    # A procedural macro runs in the compiler, and so does all that only it needs.
    linked = reach(root, nodes, {"normal"}, stop=lambda id: is_macro(packages[id]))
    everything = reach(root, nodes, {"normal", "build"})

    def reference(id: str) -> str:
        package = packages[id]
        return f"pkg:cargo/{package['name']}@{package['version']}"

    components = [
        component(packages[id], reference(id), checksums, id in linked and not is_macro(packages[id]))
        for id in sorted(everything - {root}, key=reference)
    ]
    dependencies = [
        {
            "ref": reference(id),
            "dependsOn": sorted({reference(d["pkg"]) for d in nodes[id]["deps"] if d["pkg"] in everything}),
        }
        for id in sorted(everything, key=reference)
    ]
    main_component = {
        "type": "application",
        "bom-ref": reference(root),
        "name": "kedge",
        "version": packages[root]["version"],
        "purl": reference(root),
        "licenses": [{"expression": "Apache-2.0"}],
    }
    if options.binary:
        with open(options.binary, "rb") as file:
            main_component["hashes"] = [
                {"alg": "SHA-256", "content": hashlib.file_digest(file, "sha256").hexdigest()}
            ]
    time = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), timezone.utc)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": main_component,
            "properties": [{"name": "cargo:target", "value": options.target}],
        },
        "components": components,
        "dependencies": dependencies,
    }
    body = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, body)}"
    print(json.dumps(document, indent=1))


def reach(root, nodes, kinds, stop=lambda id: False):
    """All packages that `root` needs by dependencies of these kinds."""
    found, waiting = {root}, [root]
    while waiting:
        id = waiting.pop()
        if stop(id):
            continue
        for dependency in nodes[id]["deps"]:
            if dependency["pkg"] in found:
                continue
            if any((kind["kind"] or "normal") in kinds for kind in dependency["dep_kinds"]):
                found.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    return found


def is_macro(package) -> bool:
    return any("proc-macro" in target["kind"] for target in package["targets"])


def component(package, reference, checksums, linked):
    result = {
        "type": "library",
        "bom-ref": reference,
        "name": package["name"],
        "version": package["version"],
        "purl": reference,
        "scope": "required" if linked else "excluded",
    }
    if package.get("description"):
        result["description"] = " ".join(package["description"].split())
    if package.get("license"):
        # The old form with a slash means OR.
        result["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        result["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package.get("repository"):
        result["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return result


if __name__ == "__main__":
    main()
