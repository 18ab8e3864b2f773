# file: deploy/RUNBOOK.md
# The text quotes a message that the program does not log.
s/\*took up a changed configuration\*/*has taken the new configuration*/
