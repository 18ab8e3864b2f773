# file: deploy/prometheus/rules.py
# The promise is taken at a bound that the histogram does not have.
s/le="0\.25"/le="0.2"/
