// What an application with the AI SDK does: node ai_sdk.mjs BASE_URL, and one line of JSON with what came back.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText, tool } from "ai";
import { z } from "zod";

const guardlet = createOpenAICompatible({ name: "guardlet", baseURL: process.argv[2], apiKey: "unused", includeUsage: true });
const model = guardlet("default");
const moderated = { guardlet: { guardlet: { moderation: true } } };
const colours = "Name three colours.";
const common = { model, maxRetries: 0, temperature: 0 };

async function streamed(prompt) {
  const pieces = [];
  const result = streamText({ ...common, prompt, maxOutputTokens: 24, providerOptions: moderated });
  for await (const piece of result.textStream) pieces.push(piece);
  const usage = await result.usage;
  return { text: pieces.join(""), pieces: pieces.length, finishReason: await result.finishReason, outputTokens: usage.outputTokens };
}

async function whole(prompt) {
  const { text, finishReason, usage } = await generateText({
    ...common, prompt, maxOutputTokens: 24, providerOptions: moderated,
  });
  return { text, finishReason, outputTokens: usage.outputTokens };
}

async function tools() {
  const weather = tool({ description: "The weather in a city", inputSchema: z.object({ city: z.enum(["Oslo", "Rome"]) }) });
  const { toolCalls, finishReason } = await generateText({
    ...common, prompt: "What is the weather in Rome?", tools: { weather }, toolChoice: "required", maxOutputTokens: 64,
  });
  return { calls: toolCalls.map((call) => ({ name: call.toolName, input: call.input })), finishReason };
}

async function refused() {
  try {
    await generateText({ ...common, model: guardlet("no-such-model"), prompt: colours });
    return null;
  } catch (error) {
    return { name: error.name, status: error.statusCode, message: error.message };
  }
}

const unsafe = process.argv[3];
const found = {
  stream: await streamed(colours),
  whole: await whole(colours),
  blockedStream: await streamed(unsafe),
  blockedWhole: await whole(unsafe),
  tools: await tools(),
  refused: await refused(),
};
console.log(JSON.stringify(found));
