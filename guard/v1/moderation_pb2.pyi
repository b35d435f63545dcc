import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]

class Target(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_UNSPECIFIED: _ClassVar[Target]
    TARGET_PROMPT: _ClassVar[Target]
    TARGET_RESPONSE: _ClassVar[Target]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_SAFE: _ClassVar[Verdict]
    VERDICT_UNSAFE: _ClassVar[Verdict]

class ClassificationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLASSIFICATION_MODE_UNSPECIFIED: _ClassVar[ClassificationMode]
    CLASSIFICATION_MODE_ONE_PASS: _ClassVar[ClassificationMode]
    CLASSIFICATION_MODE_EXACT: _ClassVar[ClassificationMode]

class PolicyAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_ACTION_UNSPECIFIED: _ClassVar[PolicyAction]
    POLICY_ACTION_BLOCK: _ClassVar[PolicyAction]
    POLICY_ACTION_SHADOW: _ClassVar[PolicyAction]

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_ALLOW: _ClassVar[Action]
    ACTION_BLOCK: _ClassVar[Action]
    ACTION_REPORT: _ClassVar[Action]

class DecidedBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECIDED_BY_UNSPECIFIED: _ClassVar[DecidedBy]
    DECIDED_BY_MODEL: _ClassVar[DecidedBy]
    DECIDED_BY_DENY_LIST: _ClassVar[DecidedBy]
    DECIDED_BY_ALLOW_LIST: _ClassVar[DecidedBy]
    DECIDED_BY_CACHE: _ClassVar[DecidedBy]

class Screening(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCREENING_UNSPECIFIED: _ClassVar[Screening]
    SCREENING_DECIDED: _ClassVar[Screening]
    SCREENING_PASSED_ON: _ClassVar[Screening]
    SCREENING_FAILED: _ClassVar[Screening]

class InputSignal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_SIGNAL_UNSPECIFIED: _ClassVar[InputSignal]
    INPUT_SIGNAL_FORGED_DELIMITER: _ClassVar[InputSignal]

class TextView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEXT_VIEW_UNSPECIFIED: _ClassVar[TextView]
    TEXT_VIEW_RAW: _ClassVar[TextView]
    TEXT_VIEW_NORMALIZED: _ClassVar[TextView]
    TEXT_VIEW_DELEETED: _ClassVar[TextView]
    TEXT_VIEW_DECODED: _ClassVar[TextView]
ROLE_UNSPECIFIED: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_SYSTEM: Role
ROLE_TOOL: Role
TARGET_UNSPECIFIED: Target
TARGET_PROMPT: Target
TARGET_RESPONSE: Target
VERDICT_UNSPECIFIED: Verdict
VERDICT_SAFE: Verdict
VERDICT_UNSAFE: Verdict
CLASSIFICATION_MODE_UNSPECIFIED: ClassificationMode
CLASSIFICATION_MODE_ONE_PASS: ClassificationMode
CLASSIFICATION_MODE_EXACT: ClassificationMode
POLICY_ACTION_UNSPECIFIED: PolicyAction
POLICY_ACTION_BLOCK: PolicyAction
POLICY_ACTION_SHADOW: PolicyAction
ACTION_UNSPECIFIED: Action
ACTION_ALLOW: Action
ACTION_BLOCK: Action
ACTION_REPORT: Action
DECIDED_BY_UNSPECIFIED: DecidedBy
DECIDED_BY_MODEL: DecidedBy
DECIDED_BY_DENY_LIST: DecidedBy
DECIDED_BY_ALLOW_LIST: DecidedBy
DECIDED_BY_CACHE: DecidedBy
SCREENING_UNSPECIFIED: Screening
SCREENING_DECIDED: Screening
SCREENING_PASSED_ON: Screening
SCREENING_FAILED: Screening
INPUT_SIGNAL_UNSPECIFIED: InputSignal
INPUT_SIGNAL_FORGED_DELIMITER: InputSignal
TEXT_VIEW_UNSPECIFIED: TextView
TEXT_VIEW_RAW: TextView
TEXT_VIEW_NORMALIZED: TextView
TEXT_VIEW_DELEETED: TextView
TEXT_VIEW_DECODED: TextView

class TextWindow(_message.Message):
    __slots__ = ("start", "end", "index", "count")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    index: int
    count: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., index: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content", "tool_calls", "tool_call_id")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments_json: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ...) -> None: ...

class CustomCategory(_message.Message):
    __slots__ = ("code", "name", "description")
    CODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    code: str
    name: str
    description: str
    def __init__(self, code: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("threshold", "category_thresholds", "excluded_categories", "custom_categories", "action")
    class CategoryThresholdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    category_thresholds: _containers.ScalarMap[str, float]
    excluded_categories: _containers.RepeatedScalarFieldContainer[str]
    custom_categories: _containers.RepeatedCompositeFieldContainer[CustomCategory]
    action: PolicyAction
    def __init__(self, threshold: _Optional[float] = ..., category_thresholds: _Optional[_Mapping[str, float]] = ..., excluded_categories: _Optional[_Iterable[str]] = ..., custom_categories: _Optional[_Iterable[_Union[CustomCategory, _Mapping]]] = ..., action: _Optional[_Union[PolicyAction, str]] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("request_id", "messages", "target", "policy", "mode", "model", "policy_name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    target: Target
    policy: Policy
    mode: ClassificationMode
    model: str
    policy_name: str
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., target: _Optional[_Union[Target, str]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., mode: _Optional[_Union[ClassificationMode, str]] = ..., model: _Optional[str] = ..., policy_name: _Optional[str] = ...) -> None: ...

class CategoryScore(_message.Message):
    __slots__ = ("code", "name", "score", "flagged")
    CODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    code: str
    name: str
    score: float
    flagged: bool
    def __init__(self, code: _Optional[str] = ..., name: _Optional[str] = ..., score: _Optional[float] = ..., flagged: _Optional[bool] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "completion_tokens", "drafted_tokens", "accepted_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "model", "first_token", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    model: _duration_pb2.Duration
    first_token: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., model: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("request_id", "verdict", "unsafe_score", "categories", "model", "usage", "timings", "target", "mode", "signals", "view", "window", "passes", "context_messages_left_out", "policy_name", "policy_digest", "action", "decided_by", "matched_entry", "screening")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    UNSAFE_SCORE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_MESSAGES_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    POLICY_NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    MATCHED_ENTRY_FIELD_NUMBER: _ClassVar[int]
    SCREENING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    verdict: Verdict
    unsafe_score: float
    categories: _containers.RepeatedCompositeFieldContainer[CategoryScore]
    model: str
    usage: Usage
    timings: Timings
    target: Target
    mode: ClassificationMode
    signals: _containers.RepeatedScalarFieldContainer[InputSignal]
    view: TextView
    window: TextWindow
    passes: int
    context_messages_left_out: int
    policy_name: str
    policy_digest: str
    action: Action
    decided_by: DecidedBy
    matched_entry: str
    screening: Screening
    def __init__(self, request_id: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., unsafe_score: _Optional[float] = ..., categories: _Optional[_Iterable[_Union[CategoryScore, _Mapping]]] = ..., model: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., target: _Optional[_Union[Target, str]] = ..., mode: _Optional[_Union[ClassificationMode, str]] = ..., signals: _Optional[_Iterable[_Union[InputSignal, str]]] = ..., view: _Optional[_Union[TextView, str]] = ..., window: _Optional[_Union[TextWindow, _Mapping]] = ..., passes: _Optional[int] = ..., context_messages_left_out: _Optional[int] = ..., policy_name: _Optional[str] = ..., policy_digest: _Optional[str] = ..., action: _Optional[_Union[Action, str]] = ..., decided_by: _Optional[_Union[DecidedBy, str]] = ..., matched_entry: _Optional[str] = ..., screening: _Optional[_Union[Screening, str]] = ...) -> None: ...

class BatchClassifyRequest(_message.Message):
    __slots__ = ("request_id", "requests")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    requests: _containers.RepeatedCompositeFieldContainer[ClassifyRequest]
    def __init__(self, request_id: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[ClassifyRequest, _Mapping]]] = ...) -> None: ...

class BatchClassifyResponse(_message.Message):
    __slots__ = ("request_id", "results", "timings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    results: _containers.RepeatedCompositeFieldContainer[BatchClassifyResult]
    timings: Timings
    def __init__(self, request_id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[BatchClassifyResult, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class BatchClassifyResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: ClassifyResponse
    error: ItemError
    def __init__(self, response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "message", "reason", "field_violations", "retry_delay", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    field_violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    retry_delay: _duration_pb2.Duration
    request_id: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., field_violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NamedPolicy(_message.Message):
    __slots__ = ("name", "digest", "policy", "deny_entries", "allow_entries", "is_default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DENY_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    policy: Policy
    deny_entries: int
    allow_entries: int
    is_default: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., deny_entries: _Optional[int] = ..., allow_entries: _Optional[int] = ..., is_default: _Optional[bool] = ...) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[NamedPolicy]
    def __init__(self, policies: _Optional[_Iterable[_Union[NamedPolicy, _Mapping]]] = ...) -> None: ...

class StreamClassifyRequest(_message.Message):
    __slots__ = ("start", "text", "finish")
    START_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    start: StreamClassifyStart
    text: str
    finish: StreamClassifyFinish
    def __init__(self, start: _Optional[_Union[StreamClassifyStart, _Mapping]] = ..., text: _Optional[str] = ..., finish: _Optional[_Union[StreamClassifyFinish, _Mapping]] = ...) -> None: ...

class StreamClassifyStart(_message.Message):
    __slots__ = ("request_id", "messages", "target", "policy", "model", "check_every_tokens", "at_sentence_ends", "check_at_latest_after", "policy_name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECK_EVERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AT_SENTENCE_ENDS_FIELD_NUMBER: _ClassVar[int]
    CHECK_AT_LATEST_AFTER_FIELD_NUMBER: _ClassVar[int]
    POLICY_NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    target: Target
    policy: Policy
    model: str
    check_every_tokens: int
    at_sentence_ends: bool
    check_at_latest_after: _duration_pb2.Duration
    policy_name: str
    def __init__(self, request_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., target: _Optional[_Union[Target, str]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., model: _Optional[str] = ..., check_every_tokens: _Optional[int] = ..., at_sentence_ends: _Optional[bool] = ..., check_at_latest_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., policy_name: _Optional[str] = ...) -> None: ...

class StreamClassifyFinish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamClassifyResponse(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: StreamClassifyProgress
    result: ClassifyResponse
    def __init__(self, progress: _Optional[_Union[StreamClassifyProgress, _Mapping]] = ..., result: _Optional[_Union[ClassifyResponse, _Mapping]] = ...) -> None: ...

class StreamClassifyProgress(_message.Message):
    __slots__ = ("verdict", "unsafe_score", "categories", "released_bytes", "judged_bytes", "view", "window", "checks", "action")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    UNSAFE_SCORE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    RELEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    JUDGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    unsafe_score: float
    categories: _containers.RepeatedCompositeFieldContainer[CategoryScore]
    released_bytes: int
    judged_bytes: int
    view: TextView
    window: TextWindow
    checks: int
    action: Action
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., unsafe_score: _Optional[float] = ..., categories: _Optional[_Iterable[_Union[CategoryScore, _Mapping]]] = ..., released_bytes: _Optional[int] = ..., judged_bytes: _Optional[int] = ..., view: _Optional[_Union[TextView, str]] = ..., window: _Optional[_Union[TextWindow, _Mapping]] = ..., checks: _Optional[int] = ..., action: _Optional[_Union[Action, str]] = ...) -> None: ...
