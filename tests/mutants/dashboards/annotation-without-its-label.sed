# file: deploy/grafana/panels.py
# The mark of a deploy shows a label that it does not have.
s/"\{\{version\}\} \{\{revision\}\}"/"{{version}} {{commit}}"/
