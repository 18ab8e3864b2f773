# file: deploy/consumers/fallback-outbox/worker.py
# an SMS is marked as sent before it is
s/^    with database.transaction\(\):/    if True:/
s/^            send_sms\(\*taken\)/            database.execute(SENT, taken[:1])\n&/
