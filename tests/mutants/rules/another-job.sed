# file: deploy/prometheus/rules.py
# The rules go by a job that nothing scrapes.
s/^JOB = .*/JOB = 'job="edge"'/
