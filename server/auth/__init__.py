"""Who calls, and what they may do: API keys, client certificates and OpenID Connect tokens, from one file of callers.

``file`` reads it, ``authenticator`` finds the caller of a call and follows changes of the file, ``tokens`` and
``key_set`` verify tokens, ``permissions`` says what callers may do, ``quota`` how much.
"""
