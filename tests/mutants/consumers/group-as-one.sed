# file: deploy/consumers/python-postgres/consumer.py
# the participants of a group share a state
s/recipient.get\("participant_user_id"\) or recipient.get\("participant_id"\) or ""/""/
