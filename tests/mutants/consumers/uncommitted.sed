# file: deploy/consumers/python-postgres/consumer.py
# aborted events are read
s/"read_committed"/"read_uncommitted"/
