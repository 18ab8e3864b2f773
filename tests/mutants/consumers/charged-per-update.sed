# file: deploy/consumers/python-postgres/schema.sql
# a message is charged for each update with a price
s/ NULLS LAST, happened_at DESC LIMIT 1/ NULLS LAST, happened_at DESC/
