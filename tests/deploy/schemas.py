#!/usr/bin/env python3
"""Writes the JSON schemas that kubeconform reads, strict: an unknown key is an error.

    schemas.py SWAGGER.json OUT [CRD.yaml…]

SWAGGER.json is Kubernetes' description of its API. A CRD contains its schema.
"""

import json
import sys
from pathlib import Path

import yaml


def strict(node):
    """The same schema, in which objects with known keys have no others."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and "additionalProperties" not in node:
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            node["additionalProperties"] = False
    if node.get("x-kubernetes-int-or-string") or node.get("format") == "int-or-string":
        node = {"type": ["integer", "string"]}
    return node


def references(node):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].removeprefix("#/definitions/")
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from references(item)


def reachable(name, definitions):
    """What is needed to understand one definition."""
    needed, new = {}, {name}
    while new:
        needed.update((each, definitions[each]) for each in new)
        new = {each for one in new for each in references(definitions[one])} - needed.keys()
    return needed


def main(swagger, out, crds):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    definitions = strict(json.loads(Path(swagger).read_text())["definitions"])
    # A number is a quantity, too: `cpu: 1`.
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"]["type"] = ["string", "number"]
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            group = kind["group"].split(".")[0]
            file = "-".join(filter(None, [kind["kind"], group, kind["version"]])).lower() + ".json"
            whole = {"$ref": f"#/definitions/{name}", "definitions": reachable(name, definitions)}
            (out / file).write_text(json.dumps(whole))
    for crd in crds:
        spec = yaml.safe_load(Path(crd).read_text())["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            file = f"{spec['names']['kind']}-{spec['group'].split('.')[0]}-{version['name']}.json".lower()
            (out / file).write_text(json.dumps(schema))


main(sys.argv[1], sys.argv[2], sys.argv[3:])
