"""What happens around every call, from the outside in: access_log, decode, errors, deadline, admission."""
