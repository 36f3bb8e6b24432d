#!/usr/bin/env python3
"""A bill of materials (CycloneDX 1.5) of what is compiled into the station's program, from cargo's own resolution.

usage: sbom.py TARGET FEATURES        prints JSON; needs no network once the packages are fetched
"""
import json
import subprocess
import sys
import tomllib

target, features = sys.argv[1:3]
metadata = json.loads(subprocess.check_output(
    ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target,
     "--no-default-features", "--features", features]))
with open("Cargo.lock", "rb") as lock:
    checksums = {(package["name"], package["version"]): package.get("checksum")
                 for package in tomllib.load(lock)["package"]}
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
root = metadata["resolve"]["root"]
# The metadata resolve more than is compiled: features that only tests or build scripts turn on. The tree does not.
tree = subprocess.check_output(
    ["cargo", "tree", "--locked", "--edges", "normal", "--target", target, "--no-default-features",
     "--features", features, "--prefix", "none", "--format", "{p}"], text=True)
compiled = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
seen = {identity for identity, package in packages.items() if (package["name"], "v" + package["version"]) in compiled}


def needs(identity):
    """What a package is compiled with."""
    return [dep["pkg"] for dep in nodes[identity]["deps"]
            if dep["pkg"] in seen and any(kind["kind"] is None for kind in dep["dep_kinds"])]


def reference(identity):
    return f"pkg:cargo/{packages[identity]['name']}@{packages[identity]['version']}"


def component(identity):
    package = packages[identity]
    checksum = checksums.get((package["name"], package["version"]))
    return {
        "type": "application" if identity == root else "library",
        "bom-ref": reference(identity),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(identity),
        **({"licenses": [{"expression": package["license"].replace("/", " OR ")}]} if package["license"] else {}),
        **({"hashes": [{"alg": "SHA-256", "content": checksum}]} if checksum else {}),
    }


others = sorted(seen - {root}, key=reference)
print(json.dumps({
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"component": component(root), "properties": [
        {"name": "target", "value": target}, {"name": "features", "value": features}]},
    "components": [component(identity) for identity in others],
    "dependencies": [{"ref": reference(identity), "dependsOn": sorted({reference(other) for other in needs(identity)})}
                     for identity in [root, *others]],
}, indent=1))
