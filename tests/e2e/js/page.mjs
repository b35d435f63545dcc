// Uses the page as people do: node page.mjs URL CHROMIUM UNSAFE_TEXT SCREENSHOT, and one line of JSON with what was seen.
import { chromium } from "playwright-core";

const [url, executablePath, unsafe, screenshot] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"];
const browser = await chromium.launch({ executablePath, args });
const problems = [];
const requests = [];

async function opened(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("console", (message) => { if (message.type() === "error") problems.push(message.text()); });
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  return page;
}

async function settled(page, id) {
  await page.waitForFunction((id) => {
    const text = document.getElementById(id).textContent;
    return text && !text.endsWith("…");
  }, id);
  return page.locator("#" + id).textContent();
}

async function judged(page, text) {
  await page.getByLabel("Text", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Judge", exact: true }).click();
  return settled(page, "verdict");
}

async function generated(page, text) {
  await page.getByLabel("Prompt", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Generate" }).click();
  const outcome = await settled(page, "outcome");
  return { outcome, text: await page.locator("#answer").textContent() };
}

const page = await opened({ viewport: { width: 1080, height: 900 } });
const seen = { safe: await judged(page, "What is the capital of France?") };
seen.blocked = await generated(page, unsafe);
seen.generated = await generated(page, "Name three colours.");
seen.unsafe = await judged(page, unsafe);
seen.bars = await page.locator("#bars li").count();
seen.flagged = await page.locator("#bars .flagged").count();
seen.meters = await page.getByRole("meter").count();
await page.waitForFunction(() => Number(document.getElementById("calls").textContent) >= 4);
seen.numbers = {};
for (const id of ["tokens", "first", "success", "calls"]) seen.numbers[id] = await page.locator("#" + id).textContent();
await page.screenshot({ path: screenshot, fullPage: true });

// The keyboard alone: from the top to the button, without a mouse.
await page.reload();
const order = [];
for (let step = 0; step < 8; step += 1) {
  await page.keyboard.press("Tab");
  order.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim()));
}
seen.order = order;
await page.locator("#text").focus();
await page.keyboard.type("What is the capital of France?");
await page.keyboard.press("Control+Enter");
seen.byKeyboard = await settled(page, "verdict");
seen.kept = await page.evaluate(() => localStorage.length + sessionStorage.length + document.cookie.length);

// A response in its context; the field for that shows only then.
seen.contextHidden = !(await page.locator("#context").isVisible());
await page.getByLabel("What it is").selectOption("response");
await page.getByLabel("The prompt that it answers").fill("What is the capital of France?");
seen.response = await judged(page, "It is Paris.");

// A phone in the dark: nothing is wider than the screen, and text stands out (WCAG 2.2, 1.4.3: at least 4.5 to 1).
const phone = await opened({ viewport: { width: 360, height: 740 }, colorScheme: "dark" });
seen.overflow = await phone.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
const contrasts = () => {
  const values = (name) => {
    const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
  };
  const light = (name) => {
    const [r, g, b] = values(name).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = ["--text", "--soft", "--safe", "--unsafe", "--accent"].flatMap((own) => [[own, "--card"], [own, "--page"]]);
  const all = [...pairs, ["--on-accent", "--accent"]].map(([a, b]) => {
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  });
  return Math.min(...all);
};
seen.contrast = [await page.evaluate(contrasts), await phone.evaluate(contrasts)];
seen.unlabelled = await page.evaluate(() =>
  [...document.querySelectorAll("input, select, textarea, meter")]
    .filter((field) => !(field.labels && field.labels.length) && !field.getAttribute("aria-label")).length);
seen.problems = problems;
seen.elsewhere = requests.filter((request) => !request.startsWith(url) && !request.startsWith("data:"));
await browser.close();
console.log(JSON.stringify(seen));
