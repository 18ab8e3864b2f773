# file: deploy/grafana/panels.py
# Panels show every release that there is.
s/^RELEASE = .*/RELEASE = 'job=~"$job"'/
