# file: deploy/RUNBOOK.md
# A row of a dashboard is called otherwise.
s/row \*Acceptance\*/row *Requests*/
