// Ask an OpenAI-compatible endpoint, and read its answer as it comes.

/** An error in the words of the service. */
export class ServiceError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new ServiceError(error.message, response.status, error.code);
  } catch {
    return new ServiceError(`The service answers ${response.status}.`, response.status, null);
  }
}

async function request(url, token, options = {}) {
  const isFile = options.body instanceof Blob;
  const headers = { "Content-Type": isFile ? "application/dicom" : "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(url, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached. Is it running?", 0, null);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Return what a service says at an address. */
export const get = async (url, token) => (await request(url, token)).json();

/** Return a DICOM file as a picture. */
export const preview = async (url, token, blob) =>
  (await request(url, token, { method: "POST", body: blob })).blob();

/** Send an object to an address. */
export const post = async (url, token, body) =>
  (await request(url, token, { method: "POST", body: JSON.stringify(body) })).json();

/** Return the next piece of an answer. */
async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : cutOff();
  }
}

const cutOff = () => new ServiceError("The answer was cut off.", 0, null);

/** Ask a question; `onText` gets the answer so far. Returns its id and why it ended. */
export async function ask(endpoint, body, signal, onText) {
  const response = await request(`${endpoint.url}/chat/completions`, endpoint.token, {
    method: "POST",
    body: JSON.stringify({ ...body, model: endpoint.model, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const ended = { id: null, reason: null };
  let waiting = "";
  let text = "";
  for (;;) {
    const { done, value } = await next(reader);
    if (done) break;
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:") || line.slice(5).trim() === "[DONE]") continue;
      const chunk = JSON.parse(line.slice(5));
      if (chunk.error) throw new ServiceError(chunk.error.message, 200, chunk.error.code);
      const [choice] = chunk.choices ?? [];
      ended.id = chunk.id;
      ended.reason = choice?.finish_reason ?? ended.reason;
      text += choice?.delta?.content ?? "";
      onText(text);
    }
  }
  if (!ended.reason) throw cutOff();
  return ended;
}
