// The conversation: what was asked and answered, how it is shown, and what the buttons do.
import { ask, get, preview, ServiceError } from "./client.js";
import { find, make } from "./dom.js";
import { saveJson, saveMarkdown } from "./files.js";
import { render } from "./markdown.js";
import { askOpinion, prepareOpinion } from "./opinion.js";
import { prepareViewer, view } from "./viewer.js";

const here = new URL("v1", document.baseURI).href;
const service = { url: here, model: "", token: "", info: null };
let turns = [];
let attached = [];
let running = null;

const endpoints = () => {
  const second = { url: find("second-url").value.trim() || here, model: find("second-model").value.trim() || service.model, token: find("second-token").value };
  if (second.url === here && !second.token) second.token = service.token;
  return find("compare").checked ? [service, second] : [service];
};

function complain(text) {
  find("problem").textContent = find("token-problem").textContent = text; // a dialog hides the first
  find("problem").hidden = !text;
}

// Connecting

async function connect() {
  try {
    service.info = await get(new URL("info", document.baseURI), service.token);
    service.model = service.info.model;
    find("model").textContent = service.model;
    find("export").textContent = service.info.export ?? "llavamed";
    document.title = `${service.model} · chat`;
    find("examples").replaceChildren(...service.info.examples.map(example));
    complain("");
  } catch (error) {
    find("model").textContent = "Not connected";
    complain(error.message);
    if (error.status === 401 && !find("settings").open) {
      find("settings").showModal();
      find("token").focus();
    }
  }
}

function example(text) {
  const choose = () => { find("question").value = text; grow(); find("question").focus(); };
  return make("li", {}, make("button", { type: "button", onclick: choose }, text));
}

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return false;
  service.token = find("token").value = given;
  history.replaceState(null, "", location.pathname); // it must not stay in the history
  return true;
}

// Images

const readAs = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/** Return what a browser can show of an image, or null if there is nothing. */
async function pictureOf({ name, url, blob }) {
  if (blob.type.startsWith("image/")) return { url, blob };
  try {
    const picture = await preview(new URL("preview", document.baseURI), service.token, blob);
    return { url: await readAs(picture), blob: picture };
  } catch (error) {
    complain(`${name}: ${error.message}`);
    return null;
  }
}

async function attach(files) {
  const most = service.info?.limits.image_bytes ?? Infinity;
  for (const file of files) {
    const isOther = file.type && !/^image\/|dicom/.test(file.type); // scans often have no type
    if (isOther || file.size > most) {
      complain(`${file.name}: ${isOther ? "is no image" : `has ${file.size} bytes, at most ${most} are read`}.`);
      continue;
    }
    try {
      const image = { name: file.name || "pasted image", url: await readAs(file), blob: file };
      attached.push({ ...image, picture: await pictureOf(image) });
    } catch {
      complain(`${file.name}: cannot be read. It may be a folder.`);
    }
  }
  showAttached();
  find("question").focus();
}

function thumbnail(image, properties = {}) {
  const label = `Look at ${image.name}`;
  const button = make("button", { type: "button", title: label, onclick: () => view(image).catch(() => complain(`${image.name}: this browser cannot show it. The service reads it.`)), ...properties });
  button.setAttribute("aria-label", label);
  if (image.picture) {
    const picture = make("img", { src: image.picture.url, alt: "" });
    picture.addEventListener("error", () => picture.replaceWith(image.name));
    button.append(picture);
  } else {
    button.append(image.name);
  }
  return button;
}

function showAttached() {
  find("attached").replaceChildren(
    ...attached.map((image, place) => {
      const remove = make("button", { type: "button", className: "remove", onclick: () => { attached.splice(place, 1); showAttached(); find("question").focus(); } }, "×");
      remove.setAttribute("aria-label", `Remove ${image.name}`);
      return make("li", {}, thumbnail(image, { className: "show" }), remove);
    }),
  );
}

// Showing the conversation

function showTurn(turn) {
  const number = turns.indexOf(turn);
  const question = make("div", { className: "question" });
  question.append(make("h2", { className: "unseen" }, "You"));
  if (turn.images.length) {
    question.append(make("ul", { className: "images" }, ...turn.images.map((image) => make("li", {}, thumbnail(image)))));
  }
  question.append(make("div", { className: "text" }, turn.question));
  question.append(make("div", { className: "tools" }, make("button", { type: "button", className: "small", onclick: () => edit(number) }, "Edit")));
  const answers = make("div", { className: turn.answers.length > 1 ? "answers two" : "answers" }, ...turn.answers.map((answer) => showAnswer(turn, answer)));
  turn.node.replaceChildren(question, answers);
}

function showAnswer(turn, answer) {
  answer.node = make("article", { className: "answer" });
  fillAnswer(turn, answer);
  return answer.node;
}

function fillAnswer(turn, answer) {
  const text = make("div", { className: answer.isRunning ? "text waiting" : "text" }, ...render(answer.text));
  const { url } = answer.endpoint;
  const host = URL.canParse(url, here) ? new URL(url, here).host : url;
  const who = url === here ? answer.model : `${answer.model} · ${host}`;
  const parts = [make("h2", { className: "who" }, who), text];
  answer.node.classList.toggle("failed", Boolean(answer.error));
  if (answer.error) parts.push(make("p", { className: "error" }, answer.error));
  if (!answer.isRunning && !answer.text && answer.reason === "stop") parts.push(make("p", { className: "hint" }, "The answer is empty: the model wrote nothing or blanks."));
  if (answer.reason === "length") parts.push(make("p", { className: "hint" }, "The answer reached its longest length."));
  if (answer.reason === "stopped") parts.push(make("p", { className: "hint" }, "You stopped this answer."));
  if (!answer.isRunning) parts.push(answerTools(turn, answer));
  answer.node.replaceChildren(...parts);
}

function answerTools(turn, answer) {
  const tools = make("div", { className: "tools" });
  const add = (label, onclick) => tools.append(make("button", { type: "button", className: "small", onclick }, label));
  if (answer.text) add("Copy", () => copy(answer.text));
  if (turn === turns.at(-1)) add(answer.error ? "Try again" : "Regenerate", () => regenerate(turn));
  if (service.info?.feedback && answer.id && answer.endpoint === service) {
    add("Good", () => askOpinion(service, turn, answer, "up", complain));
    add("Bad", () => askOpinion(service, turn, answer, "down", complain));
  }
  return tools;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // browsers have a clipboard for https and this machine only
  } catch {
    complain("This browser does not allow copying here. Select the text instead.");
  }
}

function showAll() {
  find("welcome").hidden = turns.length > 0;
  find("log").replaceChildren(...turns.map((turn) => turn.node));
  for (const turn of turns) showTurn(turn);
}

const isAtEnd = () => innerHeight + scrollY > document.documentElement.scrollHeight - 120;

function showRunning(isRunning) {
  find("send").hidden = isRunning;
  find("stop").hidden = !isRunning;
}

// Asking

function messagesFor(place, upTo) {
  return turns.slice(0, upTo + 1).flatMap((turn, number) => {
    const images = turn.images.map((image) => ({ type: "image_url", image_url: { url: image.url } }));
    const asked = { role: "user", content: [...images, { type: "text", text: turn.question }] };
    if (number === upTo) return [asked];
    const answer = turn.answers[place] ?? turn.answers[0];
    const isUnanswered = !answer.text && (answer.error || answer.reason === "stopped");
    return isUnanswered ? [] : [asked, { role: "assistant", content: answer.text }];
  });
}

function settings() {
  const body = { temperature: Number(find("temperature").value) };
  const limit = find("max-tokens").value;
  const seed = find("seed").value;
  if (limit) body.max_tokens = Number(limit);
  if (seed) body.seed = Number(seed);
  return body;
}

async function answerOne(turn, answer, place, signal) {
  let isPlanned = false;
  const show = () => {
    isPlanned = false;
    if (!answer.isRunning) return;
    const follow = isAtEnd();
    fillAnswer(turn, answer);
    if (follow) scrollTo(0, document.documentElement.scrollHeight);
  };
  try {
    const body = { ...answer.settings, messages: messagesFor(place, turns.indexOf(turn)) };
    const { id, reason } = await ask(answer.endpoint, body, signal, (text) => {
      answer.text = text;
      if (!isPlanned) requestAnimationFrame(show);
      isPlanned = true;
    });
    Object.assign(answer, { id, reason });
  } catch (error) {
    if (error.name === "AbortError") answer.reason = "stopped";
    else answer.error = error instanceof ServiceError ? error.message : `This page failed: ${error.message}`;
  }
  const follow = isAtEnd();
  answer.isRunning = false;
  answer.time = new Date().toISOString();
  fillAnswer(turn, answer);
  if (follow) scrollTo(0, document.documentElement.scrollHeight);
}

async function answer(turn) {
  running = new AbortController();
  const { signal } = running;
  const chosen = settings();
  turn.answers = endpoints().map((endpoint) => ({ endpoint, model: endpoint.model, settings: chosen, text: "", error: null, reason: null, id: null, isRunning: true }));
  showRunning(true);
  showAll();
  scrollTo(0, document.documentElement.scrollHeight);
  find("status").textContent = "Waiting for the answer.";
  await Promise.all(turn.answers.map((each, place) => answerOne(turn, each, place, signal)));
  if (signal === running?.signal) {
    running = null;
    showRunning(false);
  }
  find("status").textContent = turn.answers.map((each) => `${each.model}: ${each.error ?? each.text}`).join(" ");
}

async function send() {
  const question = find("question").value.trim();
  if (running || (!question && !attached.length)) return;
  complain("");
  if (!service.model) await connect();
  if (!service.model || running) return; // Enter may have come twice
  const turn = { question, images: attached, answers: [], node: make("li") };
  turns.push(turn);
  attached = [];
  find("question").value = "";
  grow();
  showAttached();
  await answer(turn);
}

async function regenerate(turn) {
  if (!running) await answer(turn);
  find("question").focus();
}

function edit(number) {
  running?.abort();
  const turn = turns[number];
  turns = turns.slice(0, number);
  attached = turn.images;
  find("question").value = turn.question;
  grow();
  showAttached();
  showAll();
  find("question").focus();
}

function grow() {
  const field = find("question");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, 200)}px`;
}

// Wiring

const hasFiles = (transfer) => transfer.types.includes("Files");

find("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
find("question").addEventListener("input", grow);
find("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
find("files").addEventListener("change", async (event) => { await attach(event.target.files); event.target.value = ""; });
find("stop").addEventListener("click", () => { running?.abort(); find("question").focus(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort(); });
document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  attach([...event.clipboardData.files]); // the list empties when the event has ended
});
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event.dataTransfer)) return; // a text goes where it is dropped
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  if (!hasFiles(event.dataTransfer)) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  attach([...event.dataTransfer.files]);
});
find("new").addEventListener("click", () => { running?.abort(); turns = []; attached = []; showAttached(); showAll(); complain(""); find("question").focus(); });
find("save-json").addEventListener("click", () => saveJson(turns, service));
find("save-markdown").addEventListener("click", () => saveMarkdown(turns, service));
find("open-settings").addEventListener("click", () => find("settings").showModal());
find("settings").addEventListener("close", () => {
  const isNew = service.token !== find("token").value.trim();
  service.token = find("token").value.trim();
  if (isNew || !service.model) connect();
  find("question").focus();
});

addEventListener("beforeunload", (event) => { if (turns.length) event.preventDefault(); }); // nothing of it is kept
addEventListener("hashchange", () => { if (takeToken()) connect(); });

prepareViewer();
prepareOpinion();
takeToken();
connect();
