// Send an opinion of an answer, after the user agreed that it is kept.
import { post } from "./client.js";
import { find } from "./dom.js";

let waiting = null;

/** Ask for a reason and for consent, and send the opinion. */
export function askOpinion(service, turn, answer, rating, complain) {
  waiting = { service, turn, answer, rating, complain };
  find("reason").value = "";
  find("consent").checked = find("consent-text").checked = false;
  find("opinion-send").disabled = true;
  find("opinion").returnValue = "";
  find("opinion").showModal();
}

async function send({ service, turn, answer, rating, complain }) {
  const body = { consent: true, rating, reason: find("reason").value, model: answer.model, answer_id: answer.id };
  if (find("consent-text").checked) Object.assign(body, { question: turn.question, answer: answer.text });
  try {
    await post(new URL("feedback", document.baseURI), service.token, body);
    find("status").textContent = "Your opinion was kept.";
  } catch (error) {
    complain(error.message);
  }
}

/** Connect the controls of the form. */
export function prepareOpinion() {
  find("consent").addEventListener("change", () => { find("opinion-send").disabled = !find("consent").checked; });
  find("opinion").addEventListener("close", () => {
    if (find("opinion").returnValue === "send" && find("consent").checked) send(waiting);
  });
}
