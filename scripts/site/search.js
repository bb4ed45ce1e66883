// The search reads a leading dash as "without this word", and fails on two of them: an option is looked for by its name.
addEventListener("input", ({ target }) => {
  if (target.matches(".md-search__input") && /(^|\s)-/.test(target.value)) {
    target.value = target.value.replace(/(^|\s)-+/g, "$1");
  }
}, true);
