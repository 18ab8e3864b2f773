# file: deploy/consumers/python-postgres/consumer.py
# the state is the update with the latest time
s/^WHERE \(excluded.status_rank, .*/WHERE excluded.happened_at > s.happened_at/
