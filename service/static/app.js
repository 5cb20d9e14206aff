// Tabs, and the models that the service has.

import { $, ask, tell } from "./api.js";
import { offerMatchers } from "./match.js";
import "./tracks.js";

const TABS = ["match", "sequence"];

function show(name) {
  for (const tab of TABS) {
    const chosen = tab === name;
    $(`tab-${tab}`).setAttribute("aria-selected", chosen);
    $(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
    $(tab).hidden = !chosen;
  }
  history.replaceState(null, "", name === TABS[0] ? location.pathname : `#${name}`);
  dispatchEvent(new CustomEvent("tab", { detail: name }));
}

for (const tab of TABS) {
  $(`tab-${tab}`).addEventListener("click", () => show(tab));
  $(`tab-${tab}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = TABS[1 - TABS.indexOf(tab)];
    show(other);
    $(`tab-${other}`).focus();
  });
}
show(location.hash === "#sequence" ? "sequence" : "match");

/** The models to choose from; there is no choice to show where there is one alone. */
async function models() {
  try {
    const found = await ask("GET", "v1/models");
    const device = found.models[0]?.device;
    $("service").textContent = found.models.length ? `${found.default} on ${device}` : "the service is starting";
    if (!found.models.length) return void setTimeout(models, 1000);
    $("model").replaceChildren(...found.models.map(({ name }) => new Option(name, name, name === found.default, name === found.default)));
    $("model-field").hidden = found.models.length < 2;
    if (found.models.length < 2) $("model").replaceChildren(); // the default needs no mention
    offerMatchers(found);
  } catch (error) {
    tell(error, models);
  }
}
models();
