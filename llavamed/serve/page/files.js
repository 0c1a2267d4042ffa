// Save a conversation as a file. Images are named by their hash and not written.
import { make } from "./dom.js";

const NOTICE = "For research only. This is not a medical device, and its answers may be wrong.";

async function hash(blob) {
  if (!crypto.subtle) return null; // browsers give it to https and this machine only
  const digest = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const stamp = () => new Date().toISOString().slice(0, 19).replaceAll(":", "-");

/** Save the turns with models, settings, times and hashes of images. */
export async function saveJson(turns, service) {
  const saved = [];
  for (const turn of turns) {
    const images = [];
    for (const image of turn.images) images.push({ name: image.name, sha256: await hash(image.blob) });
    const answers = turn.answers.map(({ model, settings, text, error, reason, id, time }) => ({ model, settings, text, error, finish_reason: reason, id, time }));
    saved.push({ question: turn.question, images, answers });
  }
  const body = { notice: NOTICE, time: new Date().toISOString(), version: service.info?.version, turns: saved };
  download(`conversation-${stamp()}.json`, "application/json", `${JSON.stringify(body, null, 2)}\n`);
}

/** Save the turns as Markdown, to read or print. */
export function saveMarkdown(turns, service) {
  const parts = turns.flatMap((turn) => [
    `## ${turn.question || "(no text)"}`,
    ...turn.images.map((image) => `Image: ${image.name}`),
    ...turn.answers.map((answer) => [`**${answer.model}**`, answer.text, answer.error].filter(Boolean).join("\n\n")),
  ]);
  download(`conversation-${stamp()}.md`, "text/markdown", `${[`# Conversation with ${service.model}`, NOTICE, ...parts].join("\n\n")}\n`);
}
