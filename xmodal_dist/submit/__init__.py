"""Jobs on a Ray cluster that runs elsewhere: what is sent, as whom, and what comes back."""
