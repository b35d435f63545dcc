"""What happens around every call, from the outside in.

access_log, telemetry, errors, deadline, auth, admission, decode.
"""
