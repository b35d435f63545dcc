// A small client of Guardlet, made from its protos when it starts. An error is never a verdict: classify() and
// generate() throw, and what they throw says why and when to come back.
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const PROTOS = process.env.GUARDLET_PROTOS ?? fileURLToPath(new URL('../../proto', import.meta.url));
const HERE = fileURLToPath(new URL('.', import.meta.url));
const OPTIONS = { keepCase: true, enums: String, longs: Number, defaults: true, oneofs: true, includeDirs: [PROTOS, HERE] };
const definition = protoLoader.loadSync(
  ['guard/v1/moderation.proto', 'guard/v1/generation.proto', 'error_details.proto'],
  OPTIONS,
);
const { guard } = grpc.loadPackageDefinition(definition);
// As the Python client's: all addresses of a name in turn; Classify again when nobody was there, and nothing else.
const SERVICE_CONFIG = JSON.stringify({
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: 'guard.v1.ModerationService', method: 'Classify' }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: '0.1s',
        maxBackoff: '2s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    },
  ],
});

export class GuardletError extends Error {
  constructor(error) {
    const details = detailsOf(error);
    super(error.details);
    this.code = grpc.status[error.code];
    this.reason = details.ErrorInfo?.reason ?? this.code;
    this.requestId = details.ErrorInfo?.metadata.request_id;
    this.fields = details.BadRequest?.field_violations ?? [];
    const delay = details.RetryInfo?.retry_delay;
    this.retryAfterMs = delay && delay.seconds * 1000 + delay.nanos / 1e6;
  }
}

// The google.rpc details of a failed call, by name: {ErrorInfo, BadRequest, RetryInfo}.
function detailsOf(error) {
  const [packed] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (packed === undefined) return {}; // not from Guardlet: nobody reached it, or gRPC ended the call by itself
  const status = definition['google.rpc.Status'].deserialize(packed);
  const found = {};
  for (const detail of status.details) {
    const name = detail.type_url.split('/').pop();
    if (name in definition) found[name.split('.').pop()] = definition[name].deserialize(detail.value);
  }
  return found;
}

export class Guardlet {
  constructor(address, credentials = grpc.credentials.createInsecure()) {
    const options = { 'grpc.service_config': SERVICE_CONFIG };
    this.moderation = new guard.v1.ModerationService(address, credentials, options);
    this.generation = new guard.v1.GenerationService(address, credentials, options);
  }

  // The ClassifyResponse for messages [{role: 'ROLE_USER', content: '...'}, ...]; the last one is judged.
  classify(messages, { timeoutMs = 30_000 } = {}) {
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + timeoutMs;
      this.moderation.Classify({ messages }, { deadline }, (error, response) => {
        if (error) reject(new GuardletError(error));
        else if (!['VERDICT_SAFE', 'VERDICT_UNSAFE'].includes(response.verdict)) reject(new Error('an answer without a verdict'));
        else resolve(response);
      });
    });
  }

  // The same, again after as long as the server asks for, while it is busy.
  async classifyPatiently(messages, { tries = 5, ...options } = {}) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.classify(messages, options);
      } catch (error) {
        if (error.retryAfterMs === undefined || attempt === tries) throw error;
        await new Promise((resolve) => setTimeout(resolve, error.retryAfterMs));
      }
    }
  }

  // The StreamGenerateResponses of a text; leaving the loop stops the server's work.
  async *generate(request, { timeoutMs = 60_000 } = {}) {
    const call = this.generation.StreamGenerate(request, { deadline: Date.now() + timeoutMs });
    try {
      yield* call;
    } catch (error) {
      throw new GuardletError(error);
    } finally {
      call.cancel();
    }
  }

  close() {
    this.moderation.close();
    this.generation.close();
  }
}
