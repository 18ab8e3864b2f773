# file: deploy/prometheus/rules.py
# Releases are one: the busy one hides the other.
s/^RELEASE = .*/RELEASE = "job"/
