"""What happens around every call, from the outside in.

access_log, telemetry, decode, errors, deadline, auth, admission.
"""
