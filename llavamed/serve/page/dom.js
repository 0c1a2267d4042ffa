// Build elements from text only: nothing here or elsewhere on the page parses HTML.

/** Return an element with properties, and with texts and elements as children. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Return the element with an id. */
export const find = (id) => document.getElementById(id);
