# file: deploy/consumers/python-postgres/consumer.py
# an unknown status overwrites the state
s/event\["status_rank"\],$/99 if event["status_rank"] is None else event["status_rank"],/
