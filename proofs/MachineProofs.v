(* The life of VMs does not depend on what is private; and everything that can happen, together. *)
Require Import NArith List Lia Bool.
Require Import Pages Lifecycle Invariants PagesProofs VmPagesProofs Noninterference NoninterferenceProofs LifeProofs LifeInvProofs ConfidentialityProofs.
Import ListNotations.
Local Open Scope N_scope.

(* ---- the life of VMs does not depend on what is private ------------------------------------------------------------- *)

Definition same_answer (a b : Outcome) : Prop :=
  match a, b with
  | Done (s, x), Done (t, y) => x = y /\ same_for_host s t
  | Refused x, Refused y => x = y
  | _, _ => False
  end.

Lemma until_refused_alike : forall (f : N -> Op), (forall k, ~ shows (f k)) -> forall n k a b, alike a b ->
  match until_refused n k (fun k m => perform m (f k)) a, until_refused n k (fun k m => perform m (f k)) b with
  | Done (s, x), Done (t, y) => x = y /\ alike s t
  | Refused x, Refused y => x = y
  | _, _ => False
  end.
Proof.
  intros f NS. induction n as [|n IH]; cbn; intros k a b A; auto.
  pose proof (step_alike a b (f k) A (NS k)) as R.
  destruct (perform a (f k)), (perform b (f k)); cbn in R; try contradiction; [apply IH, R|].
  subst. destruct (k =? 0); auto.
Qed.

Lemma find_same : forall s t v states, same_for_host s t -> find t v states = find s v states.
Proof. intros s t v states ((c & M & _) & L & _). unfold find. rewrite M, L. reflexivity. Qed.

Lemma in_memory_same : forall s t op (k : Lives -> Outcome), same_for_host s t -> ~ shows op ->
  (forall s' t', same_for_host s' t' -> same_answer (k s') (k t')) ->
  same_answer (let! s' := in_memory s (perform (memory s) op) in k s') (let! t' := in_memory t (perform (memory t) op) in k t').
Proof.
  intros s t op k (A & L & G) NS K. pose proof (step_alike _ _ op A NS) as R. unfold in_memory.
  destruct (perform (memory s) op), (perform (memory t) op); cbn in R; try contradiction.
  - apply K. split; [exact R | split; assumption].
  - cbn. congruence.
Qed.

Lemma many_same : forall s t n (f : N -> Op), same_for_host s t -> (forall k, ~ shows (f k)) ->
  same_answer (many s n (fun k m => perform m (f k))) (many t n (fun k m => perform m (f k))).
Proof.
  intros s t n f (A & L & G) NS. unfold many. pose proof (until_refused_alike f NS (N.to_nat n) 0 _ _ A) as R.
  destruct (until_refused _ _ _ (memory s)) as [[m d]|], (until_refused _ _ _ (memory t)) as [[m' d']|]; try contradiction; cbn.
  - destruct R as [-> R]. split; [reflexivity | split; [exact R | split; assumption]].
  - congruence.
Qed.

Lemma set_life_same : forall s t v l, same_for_host s t -> same_for_host (set_life s v l) (set_life t v l).
Proof. intros s t v l (A & L & G). split; [exact A|]. split; [cbn; rewrite L; reflexivity | exact G]. Qed.

Lemma fold_same : forall (X : Type) (f : X -> Op) (l : list X) a b, (forall x, ~ shows (f x)) -> alike a b ->
  alike (fold_left (fun m x => page_step m (f x)) l a) (fold_left (fun m x => page_step m (f x)) l b).
Proof. induction l; cbn; intros; auto. apply IHl; auto. apply page_step_alike; auto. Qed.

Ltac cases :=
  repeat match goal with
  | |- same_answer (match ?x with _ => _ end) _ => lazymatch x with in_memory _ _ => fail | _ => destruct x eqn:? end
  | |- same_answer (if ?x then _ else _) _ => destruct x eqn:?
  end.
Ltac same := cases;
  try match goal with
  | |- same_answer (Refused _) (Refused _) => reflexivity
  | |- same_answer (Done (set_life _ _ _, _)) (Done _) => split; [reflexivity | apply set_life_same; assumption]
  | |- same_answer (Done (?x, _)) (Done (?y, _)) => split; [reflexivity | assumption]
  end.

Lemma transition_same : forall s t call, same_for_host s t -> same_answer (transition s call) (transition t call).
Proof.
  intros s t call S. assert (F : forall v st, find t v st = find s v st) by (intros; apply find_same, S).
  destruct call; cbn [transition].
  - unfold register_vm. assert (E : free_id t = free_id s)
      by (unfold free_id; destruct S as ((c & M & _) & L & _); rewrite M, L; reflexivity).
    rewrite E. destruct (free_id s) as [v|]; [|reflexivity].
    apply (in_memory_same s t (RegisterVmTable v (if protected then Protected else Ordinary) bits root)
      (fun s' => Done (set_life s' v (mkLife Ready empty [] (0, 0) 0), Number v))); auto.
    intros. split; [reflexivity | apply set_life_same; assumption].
  - unfold register_vcpu. rewrite F. same.
    apply (in_memory_same s t (HoldMailbox mailbox)
      (fun s' => Done (set_life s' vm (with_vcpus (snd a) (set (vcpus (snd a)) vcpu (mkVcpu mailbox false Never))), Nothing))); auto.
    intros. split; [reflexivity | apply set_life_same; assumption].
  - unfold donate_pool. rewrite F. same. apply (many_same s t _ (fun k => DonatePoolPage vm (pfn + k))); auto.
  - unfold set_boot_info. rewrite F. same.
  - unfold remap_image_page. rewrite F. same.
    apply (in_memory_same s t (Assign vm (first i + loaded i) pfn false)
      (fun s' => Done (set_life s' vm (with_images (snd a)
         (set_image (images (snd a)) (N.to_nat image) (mkImage (first i) (bytes i) (loaded i + 1)))), Nothing))); auto.
    intros. split; [reflexivity | apply set_life_same; assumption].
  - unfold verify_vm. rewrite F. same.
  - unfold map_memory. rewrite F. same.
    cbv zeta. destruct (is_protected (fst a)).
    + apply (many_same s t _ (fun k => Assign vm (gfn + k) (pfn + k) true)); auto.
    + apply (many_same s t _ (fun k => Lend vm (gfn + k) (pfn + k))); auto.
  - unfold unmap_memory. rewrite F. same. cbv zeta. split; [reflexivity|]. destruct S as (A & L & G). split; [|split; assumption].
    exact (fold_same N (TakeBack vm) _ _ _ (fun _ x => x) A).
  - unfold map_io. rewrite F. destruct S as (A & L & G). rewrite G. same.
    apply (many_same s t _ (fun k => MapVmIo vm (gfn + k) (pfn + k))); [split; [exact A | split; assumption] | auto].
  - unfold set_cntvoff. rewrite F. same.
  - unfold activate. rewrite F. same.
  - unfold power_off_vm. rewrite F. same.
  - unfold reclaim_vm. rewrite F. same. split; [reflexivity|]. destruct S as (A & L & G). split; [|split; assumption].
    exact (page_step_alike _ _ (ClearVmRange vm) A (fun x => x)).
  - unfold destroy_vm. rewrite F. same. destruct S as (A & L & G).
    pose proof (page_step_alike _ _ (ClearVmRange vm) A (fun x => x)) as B.
    pose proof (step_alike _ _ (FreeVmTable vm) B (fun x => x)) as R. cbn [perform] in R. unfold page_step in R. cbn [perform] in R.
    unfold in_memory. destruct (free_vm_table (clear_vm_range (memory s) vm) vm), (free_vm_table (clear_vm_range (memory t) vm) vm);
      cbn in R; try contradiction; cbn; [|congruence].
    split; [reflexivity|]. split; [|cbn; rewrite L; auto].
    exact (fold_same _ (fun e => DropMailbox (mailbox (snd e))) _ _ _ (fun _ x => x) R).
  - unfold started, change_vcpu. rewrite F. same.
  - unfold leave, change_vcpu. rewrite F. same.
  - unfold cpu_on. rewrite F. same.
  - unfold cpu_off, change_vcpu. rewrite F. same.
  - unfold affinity_info. rewrite F. same.
Qed.

Lemma life_step_same : forall s t call, same_for_host s t ->
  snd (step s call) = snd (step t call) /\ same_for_host (fst (step s call)) (fst (step t call)).
Proof.
  intros s t call S. pose proof (transition_same s t call S) as R. unfold step.
  destruct (transition s call) as [[s' a]|], (transition t call) as [[t' b]|]; cbn in R; try contradiction; cbn.
  - destruct R as [-> R]. auto.
  - subst. auto.
Qed.

(* ---- everything that can happen -------------------------------------------------------------------------------------- *)

Lemma page_step_life : forall s op, LifeInv s -> (forall v, ~ takes v op) -> LifeInv (with_memory s (page_step (memory s) op)).
Proof.
  intros s op I T. assert (Sh : forall v, shape (page_step (memory s) op) v = shape (memory s) v) by (intro; apply step_shape, T).
  assert (Old : forall v vm, get (vms (page_step (memory s) op)) v = Some vm ->
     exists x, get (vms (memory s)) v = Some x /\ kind x = kind vm /\ cut x = cut vm)
    by (intros v vm G; apply shape_back; rewrite <- Sh; apply shape_some, G).
  constructor; cbn [memory lives with_memory].
  - intro v. rewrite <- shape_none, Sh, shape_none. apply I.
  - intros v vm l G L C. apply Old in G as (x & G & _ & Cx). apply (off_first _ I v x l G L). congruence.
  - intros v vm l G L K S. apply Old in G as (x & G & Kx & _). apply (checked _ I v x l G L); congruence.
  - apply (runs_checked _ I).
Qed.

Definition Inv (s : Lives) : Prop := PagesInv (memory s) /\ LifeInv s.

Lemma happen_keeps : forall s e, Inv s -> Inv (happen s e).
Proof.
  intros s e [P L]. destruct e; cbn [happen page_op];
    try (split; [apply page_step_keeps, P | apply page_step_life; [exact L | intros w X; exact X]]).
  - split; [apply life_step_pages, P | apply life_step_keeps, L].
  - split; [exact P | destruct L; constructor; assumption].
Qed.

Lemma reachable_inv : forall s, reachable s -> Inv s.
Proof. induction 1; [split; [apply boot_inv | apply boot_lives_inv] | apply happen_keeps; assumption]. Qed.

Lemma happen_view : forall s e v, Inv s -> alive s v -> ~ own_doing v e ->
  keeps_view v (memory s) (memory (happen s e)) /\ forall c, registers (happen s e) v c = registers s v c.
Proof.
  intros s e v [P L] (l & G & A) O. destruct e; cbn [happen page_op own_doing] in *;
    try (split; [apply step_view; [exact P | cbn; intro X; exact (O X)] | reflexivity]).
  - split; [eapply life_step_view; eauto | intro; rewrite life_step_registers; reflexivity].
  - split; [apply keeps_refl|]. intro c. cbn. destruct (N.eqb_spec v v0); [congruence | reflexivity].
Qed.

Lemma happen_same : forall s t e, same_for_host s t -> (forall v g, e <> VmShares v g) -> same_for_host (happen s e) (happen t e).
Proof.
  intros s t e S N. destruct e; cbn [happen page_op];
    try (destruct S as (A & L & G); split; [apply page_step_alike; [exact A | exact (fun x => x)] | split; assumption]).
  - apply life_step_same, S.
  - destruct (N v gfn eq_refl).
  - exact S.
Qed.

Lemma own_store_same : forall s v g p x, private_view (memory s) v g p (get (contents (memory s)) p) ->
  same_for_host s (happen s (VmStores v g x)).
Proof.
  intros s v g p x V. split; [|split; reflexivity]. cbn [happen page_op memory with_memory]. unfold page_step. cbn [perform].
  destruct (vm_store (memory s) v g x) as [m|] eqn:H; [exact (private_store_alike _ _ _ _ _ _ V H) | apply alike_refl].
Qed.

Lemma compute_same : forall s v c r, same_for_host s (happen s (VmComputes v c r)).
Proof. intros. split; [apply alike_refl | split; reflexivity]. Qed.
