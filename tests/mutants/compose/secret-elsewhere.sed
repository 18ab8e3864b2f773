# file: deploy/compose/weni-edge.toml
# The edge looks for its secret under another name.
s#secrets/demo#secrets/loja#
