// Prints what the Hub's page of a model shows: `node hub_page.mjs '<the model as JSON>'`.
import {
  LIBRARY_TASK_MAPPING,
  MAPPING_DEFAULT_WIDGET,
  MODEL_LIBRARIES_UI_ELEMENTS,
  PIPELINE_DATA,
} from "@huggingface/tasks";

const model = JSON.parse(process.argv[2]);
const task = model.pipeline_tag;
const library = MODEL_LIBRARIES_UI_ELEMENTS[model.library_name];

console.log(
  JSON.stringify({
    task: PIPELINE_DATA[task],
    taskIsTheLibrarys: LIBRARY_TASK_MAPPING[model.library_name].includes(task),
    library: library.prettyLabel,
    snippets: library.snippets(model),
    widgetInputs: MAPPING_DEFAULT_WIDGET.get(task) ?? [],
  }),
);
